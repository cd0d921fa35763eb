machine "app" {
  for_each = toset(["blue", "a b"])
  provider = dummy
}

# Known after the machines are there.
binding "chat" {
  for_each = machine.app
  from     = "ocapn://abc.tls-rpk/s/${each.value.id == "" ? "Zmlyc3Q" : "c2Vjb25k"}"
  to       = each.value
  ready    = "10s"
}
