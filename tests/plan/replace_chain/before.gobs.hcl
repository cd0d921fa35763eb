machine "a" {
  provider = dummy
  zone     = "1"
}
machine "b" {
  provider = dummy
  zone     = machine.a.address
}
machine "c" {
  provider = dummy
  size     = machine.b.address
}
