"""The embedded lab: a virtual machine with an empty disk, a rescue system and a stage.

lab = Lab("lab", report=show)
lab.up()                       # rescue system at first; later what was booted last
subprocess.call(lab.ssh_argv("dom0", ["lsblk"]))
lab.boot("disk", wait=True)
lab.down()
"""

from xenlab.lab.cache import cache_root
from xenlab.lab.lab import Lab
from xenlab.lab.status import Status
from xenlab.lab.tools import Report

__all__ = ["Lab", "Report", "Status", "cache_root"]
