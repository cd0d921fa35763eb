# with derived_firewall.gobs.hcl
machine "app" {
  provider = cloud
  region   = "eu"
  type     = "small"
}

machine "web" {
  provider = cloud
  region   = "eu"
  type     = "small"
}

binding "web" {
  from = machine.db.service.orders
  to   = machine.web
}
