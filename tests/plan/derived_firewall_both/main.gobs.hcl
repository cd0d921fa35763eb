# with derived_firewall.gobs.hcl
machine "app" {
  provider = cloud
  region   = "eu"
  type     = "small"
}

machine "new" {
  provider = cloud
  region   = "eu"
  type     = "small"
}

binding "new" {
  from = machine.db.service.orders
  to   = machine.new
}
