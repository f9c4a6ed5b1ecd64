"""Excerpts of the files that describe a kernel's modules."""

from __future__ import annotations

ALIAS = b"""\
# Aliases extracted from modules themselves.
alias pci:v00008086d000015FAsv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias pci:v000010DEd*sv*sd*bc03sc00i00* nouveau
alias fs-xfs xfs
alias usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in* r8152
alias pci:v00008086d00002725sv*sd*bc*sc*i* iwlwifi
"""
DEPENDENCIES = b"""\
kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko.xz: kernel/drivers/ptp/ptp.ko.xz
kernel/drivers/ata/ahci.ko.xz: kernel/drivers/ata/libahci.ko.xz
kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz:
kernel/drivers/net/usb/r8152.ko:
kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko:
kernel/fs/xfs/xfs.ko:
"""
BUILTIN = (
    b"virtio_net.license=GPL\0virtio_net.alias=virtio:d00000001v*\0virtio_net.file=drivers/net/virtio_net\0"
    b"i915.alias=pci:v00008086d00000102\0i915.file=drivers/gpu/drm/i915/i915\0"
)
