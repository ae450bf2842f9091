"""The libvirt driver: any libvirt URI is a host."""
