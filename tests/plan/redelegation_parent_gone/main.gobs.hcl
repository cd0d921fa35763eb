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

