machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" { provider = dummy }

binding "one" {
  from = machine.db.service.orders
  to   = machine.app
  expose { env = { DATABASE_URL = "uri" } }
}

binding "two" {
  from = machine.db.service.orders
  to   = machine.app
  expose {
    unix = "/run/two"
    mode = "0660"
    env  = { DATABASE_URL = "uri" }
  }
}
