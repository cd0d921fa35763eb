machine "db" {
  provider = dummy
  service "orders" {
    tcp   = "127.0.0.1:5432"
    ready = "90s"
  }
}
machine "web" {
  count      = 2
  provider   = dummy
  depends_on = [machine.db]
}
