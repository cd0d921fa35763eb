# A service, handed on as it is.
machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = dummy
}
machine "report" {
  provider = dummy
}
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
  attenuate { connections_max = 5 }
  expose { tcp = "127.0.0.1:5432" }
}
binding "report" {
  from = binding.db
  to   = machine.report
  expose { tcp = "127.0.0.1:5433" }
}
