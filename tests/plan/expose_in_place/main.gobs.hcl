machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = dummy
}
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
  expose { tcp = "127.0.0.1:6432" }
}

output "url" {
  value = "curl ${binding.db.address}"
}
