"""Which properties of an image OpenStack knows the meaning of: a server shows those alone."""

from __future__ import annotations

from collections.abc import Mapping

_HW = """
architecture auto_disk_config boot_menu cdrom_bus cpu_cores cpu_max_cores cpu_max_sockets
cpu_max_threads cpu_policy cpu_realtime_mask cpu_sockets cpu_thread_policy cpu_threads device_id
disk_bus disk_type emulation_architecture ephemeral_encryption ephemeral_encryption_format
ephemeral_encryption_secret_uuid firmware_stateless firmware_type floppy_bus input_bus ipxe_boot
locked_memory machine_type maxphysaddr_bits maxphysaddr_mode mem_encryption mem_encryption_model
mem_page_size numa_cpus numa_mem numa_nodes pci_numa_affinity_policy pmu pointer_model
qemu_guest_agent redirected_usb_ports rescue_bus rescue_device rng_model scsi_model
serial_port_count sound_model time_hpet tpm_model tpm_version usb_model video_model video_ram
vif_model vif_multiqueue_enabled viommu_model virtio_packed_ring vm_mode watchdog_action
"""
_IMG = """
bittorrent block_device_mapping bdm_v2 cache_in_nova compression_level config_drive
hide_hypervisor_id hv_requested_version hv_type linked_clone mappings owner_id root_device_name
signature signature_certificate_uuid signature_hash_method signature_key_type use_agent version
"""
_OS = """
admin_user command_line distro require_quiesce secure_boot skip_agent_inject_files_at_boot
skip_agent_inject_ssh type
"""
_OLD = """
architecture owner_id vmware_disktype vmware_image_version vmware_ostype auto_disk_config ipxe_boot
xenapi_device_id xenapi_image_compression_level vmware_linked_clone xenapi_use_agent
xenapi_skip_agent_inject_ssh xenapi_skip_agent_inject_files_at_boot cache_in_nova vm_mode bittorrent
mappings block_device_mapping bdm_v2 root_device_name hypervisor_version_requires hypervisor_type
traits_required
"""
KNOWN = frozenset(
    prefix + name for prefix, names in (("hw_", _HW), ("img_", _IMG), ("os_", _OS), ("", _OLD))
    for name in names.split()
)
"""The names of today, by what they are about, and those that they had before."""


def known(properties: Mapping[str, str]) -> dict[str, str]:
    """Those of the properties that are known."""
    return {name: value for name, value in properties.items() if name in KNOWN}
