machine "a" {
  provider = dummy
}
machine "b" {
  provider = cloud
  region   = "x"
  type     = "y"
}
machine "c" {
  provider = dummy
}
