machine "db" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    install = "image"
  }
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    install = "image"
  }
}
machine "root" {
  provider = far
  region   = "x"
  type     = "y"
  hob {
    dial    = "boss"
    install = "image"
    user    = "root"
  }
}
binding "app" {
  from = machine.db.service.orders
  to   = machine.app
  expose { tcp = "127.0.0.1:5432" }
  expose {
    unix = "/run/orders.sock"
    unit = "app.service"
  }
}
binding "root" {
  from = machine.db.service.orders
  to   = machine.root
  expose { unit = "app.service" }
}
