machine "db" {
  provider = lan
  region   = "eu"
  type     = "small"
  hob {
    listen    = "[::]:7463"
    advertise = ["10.0.0.2"]
  }
  firewall { derived = true }
  interface { vpc = "10.0.0.2" }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = lan
  region   = "eu"
  type     = "small"
  interface { vlan = "10.1.0.3/24" }
}
machine "web" {
  provider = lan
  region   = "eu"
  type     = "small"
  interface { vpc = "10.0.0.5" }
}
binding "app" {
  from = machine.db.service.orders
  to   = machine.app
}
binding "web" {
  from = machine.db.service.orders
  to   = machine.web
}
