machine "a" { provider = dummy }
machine "b" {
  provider = dummy
  size     = machine.a.address
}
machine "c" {
  provider   = dummy
  depends_on = [machine.b]
}
