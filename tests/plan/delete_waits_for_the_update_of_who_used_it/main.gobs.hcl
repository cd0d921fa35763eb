machine "b" {
  provider = dummy
  size     = "own"
}
