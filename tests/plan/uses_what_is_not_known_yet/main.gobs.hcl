machine "db" {
  provider = dummy
  service "orders" { tcp = "${machine.gate.address}:5432" }
}
machine "gate" { provider = dummy }
machine "app" {
  provider = dummy
  size     = binding.gate.address
}
machine "mid" { provider = dummy }
binding "gate" {
  from = machine.db.service.orders
  to   = machine.mid
}
output "key" { value = machine.app.hob.fingerprint }
