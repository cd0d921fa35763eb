machine "web" {
  count    = 1
  provider = dummy
  size     = "s${count.index}"
}
