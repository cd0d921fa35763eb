machine "app" { provider = dummy }

machine "report" { provider = dummy }

binding "chat" {
  from = "ocapn://abc.tls-rpk/s/c2Vjb25k"
  to   = machine.app
}

binding "given_on" {
  from = binding.chat
  to   = machine.report
  attenuate { methods = ["read"] }
}
