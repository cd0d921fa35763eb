machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = dummy
}

locals { deep = join("/", [for i in range(30) : "abcd"]) }
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
  expose { unix = "/run/${local.deep}/s" }
}
