# A database, handed on with fewer rights.
machine "db" {
  provider = dummy
  service "orders" {
    postgres { database = "orders" }
  }
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
  attenuate { access = "write" }
}

# Declared before what it is made from, by its name.
binding "a_report" {
  from = binding.orders
  to   = machine.report
  attenuate { access = "read" }
}
