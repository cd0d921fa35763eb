# Two machines at Linode, and what one needs of the other.
#
# LINODE_TOKEN is the account's token. Machines fetch their hob from this host, and it calls home
# here: GOBS_BOSS_LISTEN=[::]:7462 and GOBS_BOSS_ADVERTISE=HOST:7462 say how that is reached.

variable "ssh_key" {
  type        = string
  description = "The public key that may log in as root."
}

variable "region" {
  type    = string
  default = "eu-central"
}

variable "orders_port" {
  type        = number
  default     = 5432
  description = "Where the orders program listens, on the machine db."
}

variable "app_port" {
  type        = number
  default     = 5432
  description = "Where programs on the machine app find it, through the binding."
}

machine "db" {
  provider        = linode
  region          = var.region
  type            = "g6-nanode-1"
  image           = "linode/debian13"
  authorized_keys = [var.ssh_key]
  tags            = ["orders"]

  user_data = <<-EOT
    #cloud-config
    packages: [postgresql]
  EOT

  service "orders" { tcp = "127.0.0.1:${var.orders_port}" }
}

machine "app" {
  provider        = linode
  region          = var.region
  type            = "g6-nanode-1"
  image           = "linode/debian13"
  authorized_keys = [var.ssh_key]
  tags            = ["orders"]
}

binding "orders" {
  from = machine.db.service.orders
  to   = machine.app

  expose {
    tcp = "127.0.0.1:${var.app_port}"
  }
}

output "orders" {
  value       = binding.orders.address
  description = "Where programs on app find it."
}
