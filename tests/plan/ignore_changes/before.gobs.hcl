machine "db" {
  provider = dummy
  zone = "a"
  size = "s"
  service "orders" { tcp = "127.0.0.1:5432" }
}
