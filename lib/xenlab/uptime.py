"""The clock that scripts on a machine go by: its uptime, which no time server moves."""

UPTIME = """
# $now is the machine's uptime in whole seconds
uptime_seconds() { read -r now rest < /proc/uptime; now=${now%.*}; }
"""
"""Shell function for deadlines inside a script."""
