# What is handed on follows what it is made from to another machine.
machine "db" {
  provider = dummy
  service "orders" {
    postgres { database = "orders" }
  }
}

machine "app" {
  provider = dummy
}

machine "other" {
  provider = dummy
}

machine "report" {
  provider = dummy
}

binding "orders" {
  from = machine.db.service.orders
  to   = machine.other
  attenuate { access = "write" }
}

# Declared before what it is made from, by its name.
binding "a_report" {
  from = binding.orders
  to   = machine.report
  attenuate { access = "read" }
}
