machine "db" {
  provider = dummy
  zone = "b"
  size = "l"
  service "orders" { tcp = "127.0.0.1:5432" }
  lifecycle { ignore_changes = [zone] }
}
