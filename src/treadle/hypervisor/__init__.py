"""The boundary to the machines: a Protocol, a fake, the libvirt driver."""
