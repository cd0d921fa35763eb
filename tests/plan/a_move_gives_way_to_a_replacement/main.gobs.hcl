machine "base" {
  provider = dummy
  zone     = "2"
}
machine "new" {
  provider = dummy
  size     = machine.base.address
  service "s" { tcp = "127.0.0.1:1000" }
}
machine "app" {
  provider = dummy
}
binding "db" {
  from = machine.new.service.s
  to   = machine.app
}
