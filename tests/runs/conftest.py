"""Whole runs by the command line and by papermill, over a real sshd."""

from tests.ssh.conftest import make_sshd, site, sshd

__all__ = ["make_sshd", "site", "sshd"]
