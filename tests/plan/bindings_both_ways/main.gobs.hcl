machine "a" {
  provider = dummy
  service "x" { tcp = "127.0.0.1:1001" }
}
machine "b" {
  provider = dummy
  service "y" { unix = "/run/y.sock" }
}
binding "ab" {
  from = machine.a.service.x
  to   = machine.b
}
binding "ba" {
  from = machine.b.service.y
  to   = machine.a
}
