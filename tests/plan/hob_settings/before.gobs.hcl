machine "app" {
  provider = dummy
}
machine "web" {
  provider = dummy
}
