machine "db" {
  provider = dummy
  service "orders" {
    postgres { database = "orders" }
  }
  service "metrics" { tcp = "127.0.0.1:9100" }
}

machine "app" {
  provider = dummy
}

machine "report" {
  provider = dummy
}

binding "orders" {
  from = machine.db.service.orders
  to   = machine.app
  attenuate {
    access          = "read"
    schemas         = ["public"]
    connections_max = 5
  }
}

binding "metrics" {
  from = machine.db.service.metrics
  to   = machine.app
}

binding "wider" {
  from = binding.orders
  to   = machine.report
  attenuate { access = "write" }
}

binding "more" {
  from = binding.orders
  to   = machine.report
  attenuate { connections_max = 6 }
}

binding "elsewhere" {
  from = binding.orders
  to   = machine.report
  attenuate { schemas = ["public", "private"] }
}

binding "foreign" {
  from = binding.metrics
  to   = machine.report
  attenuate { access = "read" }
}
