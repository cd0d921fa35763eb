machine "app" { provider = dummy }

machine "report" { provider = dummy }

