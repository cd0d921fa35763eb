machine "gate" {
  provider = dummy
  zone     = "2"
}
machine "db" {
  provider = dummy
  service "orders" { tcp = "${machine.gate.id}:80" }
}
