machine "web" {
  count    = 2
  provider = dummy
  service "http" { tcp = "127.0.0.1:80" }
}
machine "app" {
  provider = dummy
}
binding "db" {
  from = machine.web[5].service.http
  to   = machine.app
}
