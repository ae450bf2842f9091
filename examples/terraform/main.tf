# Two servers with an SSH key on the default network.
#
#   export OS_CLIENT_CONFIG_FILE=/var/lib/treadle/clouds.yaml
#   terraform init && terraform apply

terraform {
  required_version = ">= 1.5"
  required_providers {
    openstack = {
      source  = "terraform-provider-openstack/openstack"
      version = "~> 3.0"
    }
  }
}

variable "cloud" {
  description = "Name of the cloud in clouds.yaml"
  type        = string
  default     = "treadle"
}

variable "image" {
  description = "Name of an image that is there"
  type        = string
}

variable "public_key" {
  description = "File with the SSH public key that may log in"
  type        = string
  default     = "~/.ssh/id_ed25519.pub"
}

provider "openstack" {
  cloud = var.cloud
}

data "openstack_images_image_v2" "guest" {
  name        = var.image
  most_recent = true
}

data "openstack_networking_network_v2" "default" {
  name = "default"
}

resource "openstack_compute_flavor_v2" "small" {
  name  = "example-small"
  ram   = 512
  vcpus = 1
  disk  = 1
}

resource "openstack_compute_keypair_v2" "example" {
  name       = "example"
  public_key = file(pathexpand(var.public_key))
}

resource "openstack_compute_servergroup_v2" "apart" {
  name     = "example-apart"
  policies = ["soft-anti-affinity"]
}

resource "openstack_compute_instance_v2" "web" {
  count     = 2
  name      = "example-web-${count.index + 1}"
  image_id  = data.openstack_images_image_v2.guest.id
  flavor_id = openstack_compute_flavor_v2.small.id
  key_pair  = openstack_compute_keypair_v2.example.name
  metadata = {
    role = "web"
  }

  network {
    uuid = data.openstack_networking_network_v2.default.id
  }

  scheduler_hints {
    group = openstack_compute_servergroup_v2.apart.id
  }
}

output "addresses" {
  value = openstack_compute_instance_v2.web[*].access_ip_v4
}
