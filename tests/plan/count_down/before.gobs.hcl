machine "web" {
  count    = 3
  provider = dummy
  size     = "s${count.index}"
}
