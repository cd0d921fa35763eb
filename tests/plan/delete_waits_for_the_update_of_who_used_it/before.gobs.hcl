machine "a" { provider = dummy }
machine "b" {
  provider = dummy
  size     = machine.a.address
}
