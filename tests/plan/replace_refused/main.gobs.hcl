machine "db" {
  provider = dummy
  zone = "b"
  service "orders" { tcp = "127.0.0.1:5432" }
  lifecycle { prevent_destroy = true }
}
