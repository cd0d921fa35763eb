machine "a" {
  provider = dummy
  zone     = "2"
}
machine "b" {
  provider = dummy
  zone     = machine.a.address
}
machine "c" {
  provider = dummy
  size     = machine.b.address
}
