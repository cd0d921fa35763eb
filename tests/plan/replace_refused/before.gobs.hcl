machine "db" {
  provider = dummy
  zone = "a"
  service "orders" { tcp = "127.0.0.1:5432" }
}
