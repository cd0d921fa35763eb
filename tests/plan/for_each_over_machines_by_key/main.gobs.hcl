machine "app" {
  for_each = toset(["a", "b"])
  provider = dummy
}
machine "side" {
  for_each = machine.app
  provider = dummy
  size     = each.value.address
}
