machine "a" {
  provider = dummy
  size     = machine.b.address
}
machine "b" {
  provider = dummy
  size     = local.c
}
machine "c" {
  provider = dummy
  size     = machine.a.address
}
locals { c = machine.c.address }
machine "d" { provider = dummy }
