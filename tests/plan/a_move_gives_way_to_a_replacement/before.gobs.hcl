machine "base" {
  provider = dummy
  zone     = "1"
}
machine "old" {
  provider = dummy
  size     = machine.base.address
  service "s" { tcp = "127.0.0.1:1000" }
}
machine "app" {
  provider = dummy
}
binding "db" {
  from = machine.old.service.s
  to   = machine.app
}
