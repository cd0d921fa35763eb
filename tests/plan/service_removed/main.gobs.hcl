machine "db" {
  provider = dummy
}
machine "app" {
  provider = dummy
}
