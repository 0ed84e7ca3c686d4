"""xenlab: a Xen howto that runs, step by step, over SSH. What a chapter's cells use is here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "chapter.notebook": "open_chapter",
    "chapters.backups": "backup_table guests_restored guests_saved newest_kept",
    "chapters.changes": (
        "allowed_down gone_forgotten gone_removed gone_stopped guest_values guests_back "
        "guests_renamed left_table waiting"
    ),
    "chapters.configuration": (
        "base_configured bond_of bridge_kept bridge_made bridge_settings distcc_off distcc_silent "
        "interfaces listeners log_written software_installed unmerged_table uplink_named "
        "uplink_values xen_runs xend_today OutAndIn bare guest_interface lan_bug lan_settings "
        "reaches_the_others"
    ),
    "chapters.disk": (
        "Brought below controller_software disk_files file_systems first_partition fstab "
        "guests_partitions guests_volumes in_files kernel_mounts mounted_again mounts "
        "partition_tables partitioned sources_brought stage_checksum swap_space systems_grown"
    ),
    "chapters.figures": "chapter_times nic_layouts plan_figure slowest_steps",
    "chapters.guests": (
        "FurtherDisksApart disk_booted_again domain_configured domain_table further_disks "
        "further_vifs host_key_table image_record image_taken autostart_table "
        "configurations_written found_domains none_failed power_cycled"
    ),
    "chapters.ingredients": (
        "DriversBuilt Fits driver_table look_at_machine machine_table uplink_found"
    ),
    "chapters.kernel": (
        "DiskBooted build_result build_tools builder configured_options dom0_configured "
        "guests_initrd has_initrd kernel_compiled kernel_configured kernel_installed "
        "kernel_release kernel_sources running_system wanted_options xen_entry"
    ),
    "chapters.roots": "root_of",
    "chapters.shared_usr": (
        "READ_ONLY boot_needs export_reachable export_table exports_file fetched_once "
        "guest_servers guests_unmerged_table installed_from_share lan_network nfs3_helpers_off "
        "nfs_mount_table services_after_share services_waited sources_in_guests "
        "usr_kernel_options usr_methods usr_running usr_saved usr_swapped"
    ),
    "chapters.updates": (
        "dom0_updated guests_updated services_renewed updates_fetched updates_table"
    ),
    "command": "Command",
    "host": "Host",
    "panel.chapters": "open_panel",
    "panel.fleet": "fleet_history open_fleet",
    "platform.boot": "XenEntry",
    "platform.interfaces": "GuestSettings guest_system",
    "platform.xl": "Disk DomainSpec Vif",
    "resources.archive": "Archive",
    "resources.base": (
        "All Check Condition Difference OnHost Once PathsExist Programs Report Resource "
        "text_difference"
    ),
    "resources.disk": "Filesystem PartitionTable",
    "resources.files": "Absent Directory File KernelSetting Line LineFirst Relocated Symlink",
    "resources.guest": "GuestConfigured GuestRoot",
    "resources.image": "ImageProof",
    "resources.network": "Bridge LanDevices Reaches VifAttached",
    "resources.nfs": "Exported ListensOnlyOn NfsMount ServedOn SwapFile server_settings",
    "resources.shared_usr": "UsrOnShare",
    "resources.ssh_access": (
        "AuthorizedKeys GuestAnswers HostKeyPinned HostKeysDiffer OwnKeyPinned SshHostKeys "
        "SshdSettings way_to way_to_guest"
    ),
    "site.disk_plan": "BIOS_BOOT LINUX_BOOT LINUX_SWAP REST Partition device",
    "site.rules": "guest_types lan_device",
    "site.uplink": "uplink_name",
}
_HOME = {name: place for place, names in _PLACES.items() for name in names.split()}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """A name of a chapter's cells, imported once it is asked for: the command line needs few."""
    if name not in _HOME:
        raise AttributeError(f"module 'xenlab' has no attribute {name!r}")
    return getattr(import_module(f"xenlab.{_HOME[name]}"), name)
