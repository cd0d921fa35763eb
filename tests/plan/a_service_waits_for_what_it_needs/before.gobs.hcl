machine "gate" {
  provider = dummy
  zone     = "1"
}
machine "db" {
  provider = dummy
  service "orders" { tcp = "${machine.gate.id}:80" }
}
