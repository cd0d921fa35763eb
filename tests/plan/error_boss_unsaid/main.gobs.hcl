gobs {
  boss { listen = "[::]:7462" }
}
machine "calls" {
  provider = dummy
}
