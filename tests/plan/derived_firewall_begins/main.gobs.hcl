machine "db" {
  provider = cloud
  region   = "eu"
  type     = "small"

  hob {
    listen    = "[::]:7463"
    advertise = ["ipv4"]
  }

  firewall { derived = true }

  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" {
  provider = cloud
  region   = "eu"
  type     = "small"
}
binding "app" {
  from = machine.db.service.orders
  to   = machine.app
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
