machine "app" {
  provider = dummy
}
