"""A committed site whose files on the controller are there: what `xenlab lab up` leaves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from xenlab.site.schema import load

ROOT = Path(__file__).parents[1]


def with_files(folder: Path, name: str) -> Path:
    """A committed site, its ssh_config a file that is there, as after `xenlab lab up`."""
    committed = ROOT / "parameters" / f"{name}.yaml"
    values, site = yaml.safe_load(committed.read_text()), load(committed)
    config = folder / "ssh_config"
    names = [site.ssh.host, *(domain.name for domain in site.domains)]
    hosts = (f"Host {name}\n  HostName 192.0.2.{n}\n" for n, name in enumerate(names, start=1))
    config.write_text("".join(hosts) + f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n")
    stage, kernel = folder / "stage.tar.zst", folder / "linux-6.1.tar.xz"
    for file in (stage, kernel):
        file.write_bytes(b"whatever")
        digest = subprocess.check_output(["sha256sum", file.name], cwd=folder, text=True)
        Path(f"{file}.sha256").write_text(digest)
    values["ssh"]["config"] = str(config)
    values |= {"stage": str(stage), "stage_checksums": f"{stage}.sha256"}
    values |= {"kernel_source": str(kernel), "kernel_checksums": f"{kernel}.sha256"}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file
