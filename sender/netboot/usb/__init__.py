"""``diskcast netboot usb``: a boot medium as a USB stick or an optical disc, for networks where nothing may change."""
