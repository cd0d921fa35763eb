machine "web" {
  count    = 2
  provider = dummy
}
